"""A small shop where people sign up, perhaps with a voucher."""
