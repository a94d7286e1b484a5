"""The papers' theory, computed: random features, the mixture laboratory, the latent decomposition, and the bridge."""
