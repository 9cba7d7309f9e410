"""Who will stay away: hazards of coming back, when to raise an alert, and how well that is foreseen."""
