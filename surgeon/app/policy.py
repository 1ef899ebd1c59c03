"""The content security policy of the site: the same in its meta tag and in the server's headers."""

from __future__ import annotations

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",  # the runtime is WebAssembly
        "worker-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",  # photos that were chosen, pictures that are saved
        "style-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)

HEADERS = {
    # frame-ancestors has no meaning in a meta tag.
    "Content-Security-Policy": f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'",
    # Both together give the page shared memory, and with it threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a site that was written again is seen at once
}
