"""What goes over the wire: frames, the handshake, commands, replies, names of channels. Pure."""
