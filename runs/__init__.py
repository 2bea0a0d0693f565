"""What lies on disk: run folders and their records, checkpoints, shards, feature files, weights of others."""
