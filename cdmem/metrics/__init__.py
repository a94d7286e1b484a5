"""Everything that is measured; each number has one home."""
