"""What several stages share: settings, files, data sets, engines, progress."""
