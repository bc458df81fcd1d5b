"""The only module of metering that reads the environment."""

from libs.common.settings import CommonSettings


class Settings(CommonSettings):
    port: int = 8002
