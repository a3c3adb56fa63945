"""HTTP as uvicorn speaks it, but for one thing: what it does when garbage follows a request."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """Refuses garbage without an error of its own.

    uvicorn refuses it even where the answer to the request before is on its way, or was the last of the connection;
    then one of the two has no place there, which is a traceback on the log.
    """

    def send_400_response(self, msg: str) -> None:
        """Say so if nothing else has been said, and end the connection; the request before is answered no more."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
