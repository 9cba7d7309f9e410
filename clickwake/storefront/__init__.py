"""The demo shop: a page whose clicks change what it shows within a second. It stands on what every shop would use: the
browser tracker, and the read API asked by the shop's own server, which holds the read key."""
