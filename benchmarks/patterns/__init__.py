"""Small networks of one pattern each, and what a network must answer without some of its channels."""
