"""What training needs besides the models."""
