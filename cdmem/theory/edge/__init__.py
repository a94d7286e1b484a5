"""The Gaussian-mixture laboratory of Buchanan et al. 2025: at which capacity does a denoiser memorise its data?"""
