"""The page of `captioning app`: what its server does besides the queue, and what the browser loads.

    uploads.py   photographs that wait for their captions
    captions.py  a photograph that was sent -> what the page shows
    gate.py      which requests are let through
    page.html page.css page.js   loaded from here, and nothing from outside

Gradio, whose queue runs the captions, is only known to `captioning.app`.
"""

from captioning.page.captions import Page
from captioning.page.gate import Gate, join_body
from captioning.page.uploads import BusyError, Uploads

__all__ = ["BusyError", "Gate", "Page", "Uploads", "join_body"]
