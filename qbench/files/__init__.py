"""What lies on a disk: tensors in checked shards, and files that are replaced whole or not."""
