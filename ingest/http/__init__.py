"""HTTP/1.1: connections, requests, early rejections and how answers are written."""
