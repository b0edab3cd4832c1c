"""OpenTelemetry's logs over HTTP: `POST /v1/logs`, in protobuf or JSON. https://opentelemetry.io/docs/specs/otlp/

Records that can't become events are counted in the answer (`partialSuccess`). No body is refused for one of them.
Errors are a google.rpc.Status, in the media type of the request.
"""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final

import msgspec
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceResponse,
)

from ingest.errors import UnsupportedBodyError, error_response
from ingest.protocols import otlp_json, otlp_protobuf
from ingest.protocols.decoding import Decoding
from ingest.protocols.otlp_records import RecordsBuilder
from ingest.protocols.records import BatchBuilder
from ingest.types import JSON, Batch, Codec, Decode, Headers, RequestHead, Response
from pipeline.errors import SluiceError
from pipeline.names import ProtocolName

PROTOBUF: Final = "application/x-protobuf"
MEDIA_TYPES: Final = (PROTOBUF, "application/protobuf", JSON)
# SDKs give a batch up after ten seconds in all (OTEL_EXPORTER_OTLP_TIMEOUT), and at once if they should wait longer.
RETRY_SECONDS_MAX: Final = 5.0

_CODES: Final = {400: Code.INVALID_ARGUMENT, 401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED,
                 413: Code.RESOURCE_EXHAUSTED, 415: Code.INVALID_ARGUMENT,
                 429: Code.RESOURCE_EXHAUSTED, 503: Code.UNAVAILABLE}  # fmt: skip


class _PartialSuccess(msgspec.Struct, rename="camel", omit_defaults=True):
    rejected_log_records: str = ""  # a 64-bit integer is a string in this JSON
    error_message: str = ""


class _Answer(msgspec.Struct, rename="camel", omit_defaults=True):
    partial_success: _PartialSuccess | None = None


class _Status(msgspec.Struct):
    code: int
    message: str


def otlp_codec(decoding: Decoding) -> Codec:
    """The codec of one process."""

    async def batch_of(media_type: str, body: bytes) -> Batch:
        batch = BatchBuilder(body, decoding.records_max)
        builder = RecordsBuilder(batch, decoding.records_max, decoding.bytes_max, decoding.received_ns)
        if media_type == JSON:
            steps = otlp_json.steps(builder, body)
        else:
            steps = otlp_protobuf.steps(builder, body, decoding.records_max)
        return await decoding.batch(batch, steps, _answer(media_type, batch, builder))

    def decode(head: RequestHead) -> Decode:
        media_type = _media_type(head.headers)
        if media_type not in MEDIA_TYPES:
            raise UnsupportedBodyError(f"the media type is none of: {', '.join(MEDIA_TYPES)}")
        return partial(batch_of, media_type)

    return Codec(ProtocolName.OTLP, decoding.bytes_max, decoding.inflate, decode, _rejected, form=_media_type)


def _media_type(headers: Headers) -> str:
    return (headers.get("content-type") or "").partition(";")[0].strip().lower()


def _answer(media_type: str, batch: BatchBuilder, builder: RecordsBuilder) -> Callable[[], Response]:
    """The answer once all events are durable. It has a partial success only if a record is rejected."""

    def answer() -> Response:
        rejected, problem = batch.rejected, builder.problem
        if media_type == JSON:
            success = _PartialSuccess(str(rejected), problem) if rejected else None
            return Response(200, msgspec.json.encode(_Answer(success)))
        message = ExportLogsServiceResponse()
        if rejected:
            partial_success = ExportLogsPartialSuccess(rejected_log_records=rejected, error_message=problem)
            message.partial_success.CopyFrom(partial_success)
        return Response(200, message.SerializeToString(), media_type)

    return answer


def _rejected(head: RequestHead, error: SluiceError) -> Response:
    """The answer to an error, as a google.rpc.Status."""
    plain = error_response(error, retry_seconds_max=RETRY_SECONDS_MAX)
    headers = {name: value for name, value in plain.headers.items() if name != "accept-encoding"}
    code = _CODES.get(plain.status, Code.INTERNAL)
    text = str(error) or HTTPStatus(plain.status).phrase
    media_type = _media_type(head.headers)
    if media_type in MEDIA_TYPES and media_type != JSON:
        return Response(plain.status, Status(code=code, message=text).SerializeToString(), media_type, headers)
    return Response(plain.status, msgspec.json.encode(_Status(code, text)), headers=headers)
