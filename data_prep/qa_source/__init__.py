"""Where questions come from: files of several formats, data sets of the hub, releases."""
