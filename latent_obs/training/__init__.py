"""Training a VAE offline on a frames folder."""
