"""What scripts/load and scripts/bench share."""
