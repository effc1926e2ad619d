"""The stages of a build, each a function of one shard."""
