// A device of PyTorch beside the CPU, for tests of what a GPU does differently: its tensors refuse to become NumPy arrays and to meet
// tensors of the CPU. It computes with the CPU's kernels, on memory of its own.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

namespace {

constexpr auto SECOND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(SECOND, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

std::vector<std::string> mixed;  // operations whose operands were on both devices

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* start = c10::alloc_cpu(size);
    return {start, start, &c10::free_cpu, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t size) const final { default_copy_data(to, from, size); }
};
Memory memory;
REGISTER_ALLOCATOR(SECOND, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = SECOND;
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return SECOND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
};
const bool is_registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

at::Tensor share_with_cpu(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor.detach();
  auto owner = tensor.detach();
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [owner](void*) {}, tensor.options().device(at::kCPU));
}

// --- operations on memory

using Layout = std::optional<at::Layout>;
using Device = std::optional<at::Device>;
using Type = std::optional<at::ScalarType>;
using Pinned = std::optional<bool>;

at::Tensor empty(at::IntArrayRef size, Type type, Layout, Device, Pinned, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef strides, Type type, Layout, Device, Pinned) {
  return at::detail::empty_strided_generic(size, strides, &memory, KEYS, c10::dtype_or_default(type));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  share_with_cpu(to).copy_(share_with_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  at::native::resize_impl_cpu_(to.unsafeGetTensorImpl(), from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

const at::Tensor& resize(const at::Tensor& tensor, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  at::native::resize_impl_cpu_(tensor.unsafeGetTensorImpl(), C10_AS_INTARRAYREF_SLOW(size), std::nullopt);
  return tensor;
}

at::Scalar to_number(const at::Tensor& tensor) { return share_with_cpu(tensor).item(); }

at::Tensor as_strided(const at::Tensor& tensor, at::IntArrayRef size, at::IntArrayRef strides, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(tensor, size, strides, offset);
}

// --- operations that compute

using Sizes = at::IntArrayRef;

at::Tensor convolve(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, Sizes stride,
                    Sizes padding, Sizes dilation, bool transposed, Sizes output_padding, int64_t groups) {
  TORCH_CHECK(!input.is_cpu() && !weight.is_cpu(), "operands of a convolution are on two devices");
  at::AutoDispatchBelowADInplaceOrView below;
  auto of_cpu = bias && bias->defined() ? std::optional(bias->cpu()) : std::nullopt;
  return at::convolution(input.cpu(), weight.cpu(), of_cpu, stride, padding, dilation, transposed, output_padding, groups).to(DEVICE);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolve_backward(const at::Tensor& gradient, const at::Tensor& input,
                                                                 const at::Tensor& weight, Sizes stride, Sizes padding, Sizes dilation,
                                                                 bool transposed, Sizes output_padding, int64_t groups,
                                                                 std::array<bool, 3> wanted) {
  at::AutoDispatchBelowADInplaceOrView below;
  const int64_t channels[] = {gradient.size(1)};
  auto [of_input, of_weight, of_bias] = at::convolution_backward(gradient.cpu(), input.cpu(), weight.cpu(), Sizes(channels), stride,
                                                                 padding, dilation, transposed, output_padding, groups, wanted);
  auto move = [](const at::Tensor& result) { return result.defined() ? result.to(DEVICE) : result; };
  return {move(of_input), move(of_weight), move(of_bias)};
}

void fall_back(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  bool is_on_cpu = false, is_on_second = false;
  auto look_at = [&](const at::Tensor& tensor) {
    if (tensor.defined() && tensor.is_cpu()) is_on_cpu |= tensor.dim() > 0;  // numbers may come from the CPU
    if (tensor.defined() && !tensor.is_cpu()) is_on_second = true;
  };
  for (const auto& argument : torch::jit::last(*stack, operation.schema().arguments().size())) {
    if (argument.isTensor()) look_at(argument.toTensor());
    if (argument.isTensorList())
      for (const auto& tensor : argument.toTensorVector()) look_at(tensor);
    if (argument.isOptionalTensorList())
      for (const auto& tensor : argument.toOptionalTensorVector()) look_at(tensor.value_or(at::Tensor()));
  }
  if (is_on_cpu && is_on_second) mixed.push_back(operation.schema().name());
  at::native::cpu_fallback(operation, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_local_scalar_dense", &to_number);
  library.impl("resize_", &resize);
  library.impl("as_strided", &as_strided);
  library.impl("view", &at::native::view);
  library.impl("unfold", &at::native::unfold);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("convolution_overrideable", &convolve);
  library.impl("convolution_backward_overrideable", &convolve_backward);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("take_mixed", [] { return std::exchange(mixed, {}); }, "The operations whose operands were on both devices since the last call.");
}
