"""HTTP/1.1: connections, requests, early rejections, and the encoding of responses."""
