"""What a name in a configuration or a checkpoint stands for, and which names are trusted."""
