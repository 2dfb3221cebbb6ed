"""shallow_model.py IN.gguf OUT.gguf N: the first N layers of a model, with its tokenizer and all else that it has.

Under the sanitizers a step of training takes as long as many without; what a command does needs no thirty layers to show.
"""

import os
import re
import sys

import gguf


def copy_metadata(writer, reader, n_layers):
    layers = f"{writer.arch}.block_count"
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == gguf.Keys.General.ARCHITECTURE:  # the writer says these itself
            continue
        of_array = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, n_layers if name == layers else field.contents(), field.types[0], sub_type=of_array)


def copy_tensors(writer, reader, n_layers):
    for tensor in reader.tensors:
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        if not layer or int(layer[1]) < n_layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)


def main(source, target, n_layers):
    reader, unfinished = gguf.GGUFReader(source), target + ".tmp"
    writer = gguf.GGUFWriter(unfinished, reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    copy_metadata(writer, reader, n_layers)
    copy_tensors(writer, reader, n_layers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
