#!/usr/bin/env python3
"""Event files by another implementation: Google's protobuf (Debian: python3-protobuf) writes the messages, and CRC-32C is computed bit
by bit from its polynomial. Prints the records that tests/train/tensorboard_test.cpp compares with, in hexadecimal; with a file as
argument, reads that event file and prints what is in it."""
import struct
import sys

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

F = descriptor_pb2.FieldDescriptorProto
TYPES = {"double": F.TYPE_DOUBLE, "float": F.TYPE_FLOAT, "int64": F.TYPE_INT64, "int32": F.TYPE_INT32, "string": F.TYPE_STRING,
         "bytes": F.TYPE_BYTES}
# name: (number, type, repeated); from tensorflow/core/util/event.proto and core/framework/{summary,tensor,tensor_shape}.proto
MESSAGES = {
    "SessionLog": {"status": (1, "int32", False)},
    "PluginData": {"plugin_name": (1, "string", False), "content": (2, "bytes", False)},
    "SummaryMetadata": {"plugin_data": (1, "PluginData", False)},
    "Dim": {"size": (1, "int64", False)},
    "TensorShapeProto": {"dim": (2, "Dim", True)},
    "TensorProto": {"dtype": (1, "int32", False), "tensor_shape": (2, "TensorShapeProto", False), "string_val": (8, "bytes", True)},
    "HistogramProto": {"min": (1, "double", False), "max": (2, "double", False), "num": (3, "double", False),
                       "sum": (4, "double", False), "sum_squares": (5, "double", False), "bucket_limit": (6, "double", True),
                       "bucket": (7, "double", True)},
    "Value": {"tag": (1, "string", False), "simple_value": (2, "float", False), "histo": (5, "HistogramProto", False),
              "tensor": (8, "TensorProto", False), "metadata": (9, "SummaryMetadata", False)},
    "Summary": {"value": (1, "Value", True)},
    "Event": {"wall_time": (1, "double", False), "step": (2, "int64", False), "file_version": (3, "string", False),
              "summary": (5, "Summary", False), "session_log": (7, "SessionLog", False)},
}


def classes():
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for i, (field, (number, kind, repeated)) in enumerate(fields.items()):
            f = message.field.add(name=field, number=number, label=F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL)
            if kind in TYPES:
                f.type = TYPES[kind]
            else:
                f.type, f.type_name = F.TYPE_MESSAGE, ".t." + kind
            # TensorFlow has these in a oneof: what is set is written, zero or not.
            if not repeated and (name, field) in {("Value", "simple_value"), ("Event", "step")}:
                f.proto3_optional = True
                f.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name="_" + field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    factory = message_factory.MessageFactory(pool)
    return {name: factory.GetPrototype(pool.FindMessageTypeByName("t." + name)) for name in MESSAGES}


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            lowest = (crc ^ (byte >> bit)) & 1
            crc >>= 1
            if lowest:
                crc ^= int("{:032b}".format(0x1EDC6F41)[::-1], 2)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def record(message):
    data = message.SerializeToString(deterministic=True)
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def main():
    C = classes()
    Event = C["Event"]
    if len(sys.argv) > 1:
        data = open(sys.argv[1], "rb").read()
        at = 0
        while at < len(data):
            length, = struct.unpack_from("<Q", data, at)
            assert struct.unpack_from("<I", data, at + 8)[0] == masked(data[at:at + 8]), "length's checksum at %d" % at
            body = data[at + 12:at + 12 + length]
            assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked(body), "checksum at %d" % at
            print(str(Event.FromString(body)).replace("\n", " "))
            at += 16 + length
        return
    print("version", record(Event(wall_time=1000.5, file_version="brain.Event:2")).hex())
    start = Event(wall_time=1000.5, step=301)
    start.session_log.status = 1
    print("start", record(start).hex())
    scalars = Event(wall_time=1000.5, step=300)
    scalars.summary.value.add(tag="step/loss", simple_value=0.1)
    scalars.summary.value.add(tag="step/zero", simple_value=0)
    print("scalars", record(scalars).hex())
    histogram = Event(wall_time=1000.5, step=0)
    value = histogram.summary.value.add(tag="weights/fc1.weight")
    h = value.histo
    h.min, h.max, h.num, h.sum, h.sum_squares = -0.5, 0.25, 7, -1.5, 1.125
    h.bucket_limit.extend([-0.5, -0.25, 0, 0.25])
    h.bucket.extend([0, 4, 1, 2])
    print("histogram", record(histogram).hex())
    text = Event(wall_time=1000.5, step=1 << 40)
    value = text.summary.value.add(tag="config")
    value.tensor.dtype = 7
    value.tensor.tensor_shape.SetInParent()
    value.tensor.string_val.append("**é** " .encode() * 30)
    value.metadata.plugin_data.plugin_name = "text"
    print("text", record(text).hex())


main()
