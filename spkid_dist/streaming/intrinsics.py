"""Define two machine operations that Python has no words for: prefetch a cache line, copy a stretch of memory.

Both are for compiled loops only (`kernels`), and check nothing: an index out of range is undefined behaviour.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BYTES = ir.IntType(8).as_pointer()
_READ, _LEVEL_2_CACHE, _DATA = (ir.Constant(ir.IntType(32), value) for value in (0, 2, 1))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _BYTES)


def _prefetch(_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``, a flat array, to be brought into the second-level cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments)
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [_BYTES], kind)
        builder.call(function, [address, _READ, _LEVEL_2_CACHE, _DATA])
        return context.get_dummy_value()

    return types.void(array, index), generate


prefetch: Any = intrinsic(_prefetch)


def _copy_bytes(_context: Any, out: Any, at: Any, source: Any, start: Any, num_bytes: Any) -> Any:
    """Copy `num_bytes` from ``source[start]`` on to ``out[at]`` on; flat arrays of the same dtype."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out_array, at_index, source_array, start_index, size = arguments
        target = _address(context, builder, signature.args[0], out_array, at_index)
        origin = _address(context, builder, signature.args[2], source_array, start_index)
        cgutils.raw_memcpy(builder, target, origin, size, 1)
        return context.get_dummy_value()

    return types.void(out, at, source, start, num_bytes), generate


copy_bytes: Any = intrinsic(_copy_bytes)
