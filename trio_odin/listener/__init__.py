"""From a TCP connection to a connected client or an answer: accepting, request heads, pages."""
