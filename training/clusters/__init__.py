"""What a release says of everybody: clusters of users, kept from one training to the next."""
