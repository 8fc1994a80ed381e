"""What an optimiser has fused, as the plain operations that it stands for."""
