"""From web images to captioned person crops: stages, each a function of one shard, and what runs them."""
