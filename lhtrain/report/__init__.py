"""The output of a run: events, terminal, metrics, trackers, summary, plot."""
