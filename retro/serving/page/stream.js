const CUT = "The connection ended before the text did.";

// A streamed completion: calls onPiece with every choice piece; resolves to the usage.
// Throws an Error whose message is the server's, or an AbortError when the signal stops it.
export async function streamCompletion(body, signal, onPiece) {
  const request = fetch("/v1/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const response = await named(request, "The server does not answer. Is it still running?");
  if (!response.ok) throw new Error(await errorOf(response));
  let usage = null;
  let ended = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) usage = chunk.usage;
    for (const choice of chunk.choices) onPiece(choice);
  }
  if (!ended) throw new Error(CUT);
  return usage;
}

// Failures of the network have names that differ by browser and say little.
async function named(promise, message) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(message);
  }
}

async function errorOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await named(reader.read(), CUT);
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: ")) yield part.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
