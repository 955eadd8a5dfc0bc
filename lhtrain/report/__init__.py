"""What a run reports while it trains and what it leaves: terminal, metrics, trackers, summary, plot."""
