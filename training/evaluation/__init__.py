"""What every evaluation shares: measures, intervals, comparisons, the page that shows them."""
