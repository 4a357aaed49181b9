"""The config file: found, read, checked, frozen.

`load_config(find_config())` is all most callers need.
"""

from td_runtime.config.load import DEFAULT_NAME, find_config, load_config
from td_runtime.config.model import (
    Config,
    ControlPlaneConfig,
    CredentialsConfig,
    GatewayConfig,
    LimitsConfig,
    LogConfig,
    RetryConfig,
    RuntimeConfig,
    StoreConfig,
    TaskConfig,
)
from td_runtime.config.places import ListenAddress
from td_runtime.secret import Secret

__all__ = [
    "DEFAULT_NAME",
    "Config",
    "ControlPlaneConfig",
    "CredentialsConfig",
    "GatewayConfig",
    "LimitsConfig",
    "ListenAddress",
    "LogConfig",
    "RetryConfig",
    "RuntimeConfig",
    "Secret",
    "StoreConfig",
    "TaskConfig",
    "find_config",
    "load_config",
]
