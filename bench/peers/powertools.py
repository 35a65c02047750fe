"""Calls a function that Powertools makes idempotent, for whoever asks on a Unix socket, a line a call."""

import socketserver
import sys
import threading
import time

import redis
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
from aws_lambda_powertools.utilities.idempotency.exceptions import IdempotencyAlreadyInProgressError
from aws_lambda_powertools.utilities.idempotency.persistence.cache import CachePersistenceLayer


class LambdaContext:
    """What a Lambda is told of its time: by this, a claim knows when it lapses."""

    def get_remaining_time_in_millis(self):
        return 30_000


socket_path, redis_port = sys.argv[1:]
# A connection for each thread: by default there are a hundred, and who comes later gets an error.
client = redis.Redis(host="127.0.0.1", port=int(redis_port), decode_responses=True, max_connections=2_000)
persistence = CachePersistenceLayer(client=client)
config = IdempotencyConfig(event_key_jmespath="key", expires_after_seconds=24 * 3600)
config.register_lambda_context(LambdaContext())
this_call = threading.local()


@idempotent_function(data_keyword_argument="order", persistence_store=persistence, config=config)
def work(order):
    this_call.executed = True
    if order["seconds"]:
        time.sleep(order["seconds"])
    return {"response": order["response"]}


class Calls(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            key, seconds, response = line.decode().rstrip("\n").split(" ", 2)
            this_call.executed = False
            try:
                order = {"key": key, "seconds": float(seconds), "response": response}
                answer = work(order=order)["response"]
                word = "executed" if this_call.executed else "replayed"
            except IdempotencyAlreadyInProgressError:
                word, answer = "busy", ""
            except Exception as error:
                word, answer = "error", repr(error).replace("\n", " ")
            self.wfile.write(f"{word} {answer}\n".encode())


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 1024


with Server(socket_path, Calls) as server:
    print("ready", flush=True)
    server.serve_forever()
