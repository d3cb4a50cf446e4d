"""The HTTP API: OpenAI's shapes on top of :class:`~mlx_router.runtime.manager.MLXModelManager`.

``create_app`` in :mod:`mlx_router.api.app` puts it together.
"""
