"""The wire protocol: frames, the handshake, commands, channel names. Pure."""
