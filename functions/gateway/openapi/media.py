"""The documentation of the routes for images and embeddings."""

from __future__ import annotations

from gateway.errors import BadRequest, Unprocessable
from gateway.openapi.chat import IDEMPOTENCY_KEY
from gateway.openapi.routes import Content, Route, Routes
from gateway.schemas.answers import media as answers
from gateway.schemas.media import MAX_IMAGES, MAX_INPUT_IMAGES

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_TEXT = {"type": "string", "minLength": 1}
_FORM = {
    "type": "object",
    "required": ["model", "prompt", "image"],
    "properties": {
        "model": _TEXT,
        "prompt": _TEXT,
        "image": {
            "description": f"A PNG, JPEG, WebP or GIF; up to {MAX_INPUT_IMAGES} as `image[]`.",
            **_FILE,
        },
        "mask": {"description": "A PNG whose transparent parts are to be edited.", **_FILE},
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_IMAGES},
    },
    "additionalProperties": {"type": "string"},
}
_BOUNDED = (
    "Before the provider is called, the most that the images may cost is held: by the size and the quality, "
    "and for `auto` by the dearest. Settled is what the provider tells. A field that is not known here is "
    "refused, as it could change the price."
)
_UNSUPPORTED = Unprocessable(
    "vLLM takes no image by its URL: send the image itself.",
    param="images.0.image_url",
    code="unsupported_content",
)

ROUTES: Routes = {
    "POST /v1/images/generations": Route(
        answer=answers.Images,
        metered=True,
        description=f"OpenAI's Images, by any model whose `output_modalities` have `image`. {_BOUNDED}",
        parameters=(IDEMPOTENCY_KEY,),
        request={
            "model": "gpt-image-2",
            "prompt": "A lighthouse at dusk",
            "size": "1024x1024",
            "quality": "low",
        },
        refusals=(Unprocessable("stream: Input should be False", param="stream"),),
    ),
    "POST /v1/images/edits": Route(
        answer=answers.Images,
        metered=True,
        description="Images made of others: as a form with files, or as JSON with data URLs, or with URLs "
        f"for providers that fetch them. The gateway fetches nothing. {_BOUNDED}",
        parameters=(IDEMPOTENCY_KEY,),
        request={
            "model": "gpt-image-2",
            "prompt": "Make it night",
            "images": [{"image_url": f"data:image/png;base64,{_PIXEL}"}],
        },
        upload=Content("multipart/form-data", "The fields of the JSON body, and the images.", schema=_FORM),
        refusals=(
            BadRequest(
                "The body is not a valid form: it does not end with its boundary.", code="invalid_form"
            ),
            _UNSUPPORTED,
        ),
    ),
    "POST /v1/embeddings": Route(
        answer=answers.Embeddings,
        metered=True,
        description="OpenAI's Embeddings, by any model whose `output_modalities` have `embedding`.",
        parameters=(IDEMPOTENCY_KEY,),
        request={"model": "text-embedding-3-small", "input": "The quick brown fox"},
    ),
}
