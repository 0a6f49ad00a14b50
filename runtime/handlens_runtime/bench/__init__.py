"""How fast a bundle runs on this machine, by itself or beside llama.cpp.

run         the turns: who measures what after whom          ─▶ results
workload    which prompts and depths, and which of them fit
remote      a runner in a process of its own (worker), so that each has its own peak memory
runner      what can be measured: bundle_runner, llama_cpp_runner (on the file that gguf_twin writes)
traffic     bytes that one decode step reads
bandwidth   bytes a second that this machine reads
"""

from handlens_runtime.bench.results import Benchmark
from handlens_runtime.bench.run import bench
from handlens_runtime.bench.workload import Workload

__all__ = ["Benchmark", "Workload", "bench"]
