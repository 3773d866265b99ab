"""Reward models: heads on hidden states, how one is fitted first, and scoring with them."""
