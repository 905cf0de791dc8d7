"""This adapter updates SGLang in place; see docs/how-to/update-sglang-live.md.

* Inside SGLang it is a plugin, which needs no option: installed beside SGLang, it is found by its entry point.
* Outside, :class:`SglangFleet` drives running servers through their HTTP interface. It needs no SGLang installed.
"""

from ckpt_transport_sglang.fleet import SglangFleet

__all__ = ["SglangFleet"]
