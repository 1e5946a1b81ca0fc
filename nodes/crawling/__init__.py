"""What the type ``crawl`` is made of, each part for itself: addresses, robots.txt, what a page says, how fast."""
