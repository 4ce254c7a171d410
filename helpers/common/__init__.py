"""What both notebooks need."""
