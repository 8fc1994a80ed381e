"""JAX compiles each function once a session, not once a test, and quickly."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
