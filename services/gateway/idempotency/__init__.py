"""One answer for one key: a creating request that comes again gets the same bytes and makes nothing new."""
