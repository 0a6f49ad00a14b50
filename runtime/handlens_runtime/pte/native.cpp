// A program and its methods, behind a C interface that Python's ctypes can call.
//
// ExecuTorch's own Python binding passes no options per load, and XNNPACK's file of packed weights is honoured only
// there. It also needs torch's Python package, which takes seconds to import. Knows tensors and errors, nothing of
// bundles; built and called by the modules beside it.

#include <executorch/extension/module/module.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/platform/platform.h>

#include <cstring>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

namespace {

using executorch::aten::ScalarType;
using executorch::aten::TensorImpl;
using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Program;

constexpr int kMaxRank = 8;
constexpr char kBackend[] = "XnnpackBackend";

// As ExecuTorch's binding prints its lines, but for those that tell how each weight's file grows, hundreds of them.
void emit(et_timestamp_t, et_pal_log_level_t level, const char* file, const char*, size_t line, const char* message,
          size_t) {
  if (level == et_pal_log_level_t::kInfo && std::strcmp(file, "XNNWeightsCache.cpp") == 0) return;
  std::cerr << "[" << file << ":" << line << "] " << message << std::endl;
}

// Why this thread's last call failed.
thread_local std::string reason;

int failed(Error error) {
  reason = executorch::runtime::to_string(error);
  return -1;
}

}  // namespace

extern "C" {

// One tensor, dense and row-major. `type` is ExecuTorch's ScalarType.
struct HandlensTensor {
  void* data;
  int64_t sizes[kMaxRank];
  int32_t rank;
  int32_t type;
};

// Once, before anything else. ExecuTorch's binding has registered its own printing, and registering another is told on
// std::cerr.
void handlens_start() {
  std::streambuf* terminal = std::cerr.rdbuf(nullptr);
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(emit, __FILE__));
  std::cerr.rdbuf(terminal);
}

// Why this thread's last call failed.
const char* handlens_reason() { return reason.c_str(); }

// Longest path of packed weights that reaches XNNPACK whole.
int64_t handlens_longest_path() { return static_cast<int64_t>(executorch::runtime::kMaxOptionValueLength) - 1; }

// Map a program's file. `packed`: where XNNPACK keeps packed weights, null for nowhere. Null where it failed.
void* handlens_open(const char* path, const char* packed) {
  auto module = std::make_unique<Module>(path, Module::LoadMode::Mmap);
  executorch::runtime::BackendOptions<2> options;
  executorch::runtime::LoadBackendOptionsMap map;
  Error error = Error::Ok;
  if (packed != nullptr) {
    error = options.set_option("weight_cache_enabled", true);
    if (error == Error::Ok) error = options.set_option("packed_cache_path", packed);
    if (error == Error::Ok) error = map.set_options(kBackend, options.view());
  }
  if (error == Error::Ok) error = module->load(map, Program::Verification::InternalConsistency);
  if (error != Error::Ok) {
    failed(error);
    return nullptr;
  }
  return module.release();
}

// 1 where the program has the method, 0 where it lacks it, -1 where that cannot be said.
int handlens_has(void* program, const char* method) {
  auto names = static_cast<Module*>(program)->method_names();
  return names.ok() ? static_cast<int>(names->count(method)) : failed(names.error());
}

// Load a method, with memory of its own; 0, or -1 where it failed.
int handlens_load(void* program, const char* method) {
  Error error = static_cast<Module*>(program)->load_method(method);
  return error == Error::Ok ? 0 : failed(error);
}

// Run a method. `outputs` point into the program's memory until its next run. Returns their number, or -1.
int handlens_run(void* program, const char* method, const HandlensTensor* inputs, int count, HandlensTensor* outputs,
                 int most) {
  using Sizes = std::vector<executorch::aten::SizesType>;
  std::vector<Sizes> sizes;
  std::vector<std::vector<executorch::aten::DimOrderType>> orders;
  std::vector<std::vector<executorch::aten::StridesType>> strides;
  std::vector<TensorImpl> tensors;
  std::vector<EValue> values;
  tensors.reserve(count);  // values point to them
  for (int i = 0; i < count; ++i) {
    const HandlensTensor& input = inputs[i];
    sizes.emplace_back(input.sizes, input.sizes + input.rank);
    orders.emplace_back(input.rank);
    std::iota(orders[i].begin(), orders[i].end(), 0);
    strides.emplace_back(input.rank, 1);
    for (int d = input.rank - 2; d >= 0; --d) strides[i][d] = strides[i][d + 1] * sizes[i][d + 1];
    tensors.emplace_back(static_cast<ScalarType>(input.type), input.rank, sizes[i].data(), input.data,
                         orders[i].data(), strides[i].data());
    values.emplace_back(executorch::aten::Tensor(&tensors[i]));
  }
  auto results = static_cast<Module*>(program)->execute(method, values);
  if (!results.ok()) return failed(results.error());
  if (results->size() > static_cast<size_t>(most)) return failed(Error::InvalidArgument);
  for (size_t i = 0; i < results->size(); ++i) {
    if (!results->at(i).isTensor() || results->at(i).toTensor().dim() > kMaxRank) return failed(Error::InvalidType);
    auto tensor = results->at(i).toTensor();
    outputs[i].data = tensor.mutable_data_ptr();
    outputs[i].rank = static_cast<int32_t>(tensor.dim());
    outputs[i].type = static_cast<int32_t>(tensor.scalar_type());
    for (int d = 0; d < outputs[i].rank; ++d) outputs[i].sizes[d] = tensor.size(d);
  }
  return static_cast<int>(results->size());
}

void handlens_close(void* program) { delete static_cast<Module*>(program); }

}  // extern "C"
