"""Where documents come from: files and folders, rows of data sets, the hub, repositories."""
