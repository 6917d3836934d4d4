"""The No-U-Turn sampler, as a reference."""
