"""Speed of amrs on the machine at hand, each figure next to its bound measured in the same run."""
