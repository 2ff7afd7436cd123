"""What an adapter is: its reference, manifest, store and verification. The contract between training and service."""
