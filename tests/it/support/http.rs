//! A small blocking HTTP/1.1 client for tests, on a plain TCP stream.
//!
//! It shares no code with the program's client, so that both cannot have the same bug, and it can send malformed
//! requests. It is strict about answers: a truncated answer is an error, never a short body.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// A server that sends nothing for this long fails the test. Above the longest timeout that a request can ask for.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A longer line in a head is an error.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// A status line and its header fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    /// Names and values as received, in their order.
    pub headers: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub head: Head,
    pub body: Vec<u8>,
}

/// Gets a path.
pub fn get(addr: SocketAddr, path: &str) -> io::Result<Response> {
    request(addr, "GET", path, &[], b"")
}

/// Posts a body with these header fields. No content type is added.
pub fn post(addr: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Response> {
    request(addr, "POST", path, headers, body)
}

/// Posts JSON.
pub fn post_json(addr: SocketAddr, path: &str, body: &serde_json::Value) -> io::Result<Response> {
    post(addr, path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// Sends any request on a connection of its own and reads the whole answer.
pub fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let mut connection = Connection::open(addr)?;
    let bytes = encode(addr, method, path, headers, body);
    // A server may refuse the request and close before it has read the whole body: prefer its answer to the broken
    // pipe.
    let sent = connection.send(&bytes);
    connection.receive(method).or_else(|e| sent.and(Err(e)))
}

/// The bytes of a request, with a `content-length`.
pub fn encode(addr: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() || method == "POST" {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

impl Head {
    /// The value of a header field, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of UTF-8")
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.text()))
    }
}

/// A connection, for tests that send raw bytes, reuse a connection, or read an answer in pieces.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(addr: SocketAddr) -> io::Result<Self> {
        Self::open_within(addr, CONNECT_TIMEOUT, READ_TIMEOUT)
    }

    /// As `open`, with these timeouts: for the connection, and for each read and write.
    pub fn open_within(addr: SocketAddr, connect: Duration, step: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, connect)?;
        stream.set_read_timeout(Some(step))?;
        stream.set_write_timeout(Some(step))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Sends these bytes, well-formed or not.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Closes the sending side, as happens when a client dies in the middle of a request.
    pub fn end(&mut self) -> io::Result<()> {
        self.stream.get_ref().shutdown(Shutdown::Write)
    }

    /// Reads the next whole answer. `method` is that of its request: an answer to HEAD has no body.
    pub fn receive(&mut self, method: &str) -> io::Result<Response> {
        let head = self.head()?;
        let mut body = Vec::new();
        self.body(method, &head)?.read_to_end(&mut body)?;
        Ok(Response { head, body })
    }

    /// Reads raw bytes until the server closes the connection.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// Reads only the head of the next answer.
    pub fn head(&mut self) -> io::Result<Head> {
        let line = self.line()?;
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| malformed(format!("status line {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(Head { status, headers });
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed(format!("header {line:?}")))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// A reader of the body that follows this head.
    pub fn body(&mut self, method: &str, head: &Head) -> io::Result<Body<'_>> {
        let chunked = head.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        let left = if method == "HEAD" || matches!(head.status, 100..200 | 204 | 304) {
            Left::Bytes(0)
        } else if chunked {
            Left::Chunk(0)
        } else if let Some(length) = head.header("content-length") {
            Left::Bytes(length.parse().map_err(|_| malformed(format!("length {length:?}")))?)
        } else {
            Left::UntilClosed
        };
        Ok(Body { connection: self, left, first: true })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(LINE_BYTES_MAX).read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Err(malformed(format!("line {line:?}"))),
        }
    }
}

/// A reader of a body. It ends only where the HTTP framing says so.
pub struct Body<'a> {
    connection: &'a mut Connection,
    left: Left,
    /// No chunk was read yet, so no line end precedes the next chunk size.
    first: bool,
}

/// The rest of the body.
enum Left {
    Bytes(u64),
    /// Bytes left of this chunk; more chunks follow.
    Chunk(u64),
    UntilClosed,
}

impl Body<'_> {
    /// The size of the next chunk. Zero: the body has ended, and its trailers have been read.
    fn next_chunk(&mut self) -> io::Result<u64> {
        if !std::mem::take(&mut self.first) && !self.connection.line()?.is_empty() {
            return Err(malformed("a chunk longer than its size".into()));
        }
        let line = self.connection.line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| malformed(format!("chunk size {line:?}")))?;
        if size == 0 {
            while !self.connection.line()?.is_empty() {}
        }
        Ok(size)
    }

    fn take(&mut self, buffer: &mut [u8], left: u64) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0); // reading zero bytes from a buffered reader would still wait for the next answer
        }
        match self.connection.stream.read(&mut buffer[..most])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Left::Chunk(0) = self.left {
            self.left = match self.next_chunk()? {
                0 => Left::Bytes(0),
                size => Left::Chunk(size),
            };
        }
        match self.left {
            Left::UntilClosed => self.connection.stream.read(buffer),
            Left::Bytes(left) => {
                let count = self.take(buffer, left)?;
                self.left = Left::Bytes(left - count as u64);
                Ok(count)
            }
            Left::Chunk(left) => {
                let count = self.take(buffer, left)?;
                self.left = Left::Chunk(left - count as u64);
                Ok(count)
            }
        }
    }
}

fn malformed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that reads one head and `body` more bytes, answers with these bytes and closes.
    fn serve(answer: &'static [u8], body: usize) -> (SocketAddr, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut seen = Vec::new();
            let mut byte = [0];
            while !seen.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).expect("a head");
                seen.push(byte[0]);
            }
            let mut rest = vec![0; body];
            stream.read_exact(&mut rest).expect("a body");
            seen.extend(rest);
            stream.write_all(answer).expect("a reader");
            String::from_utf8(seen).expect("text")
        });
        (addr, server)
    }

    #[track_caller]
    fn check(answer: &'static [u8], want: Result<(u16, &str), io::ErrorKind>) {
        let (addr, server) = serve(answer, 0);
        let got = get(addr, "/x");
        server.join().expect("served");
        let got = got.as_ref().map(|r| (r.status(), r.text())).map_err(io::Error::kind);
        assert_eq!(got, want);
    }

    #[test]
    fn answers_end_where_their_framing_says() {
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello", Ok((200, "he")));
        check(b"HTTP/1.1 200 OK\r\n\r\nuntil closed", Ok((200, "until closed")));
        check(b"HTTP/1.1 204 No Content\r\n\r\nnever read", Ok((204, "")));
        let chunked = b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nt: 1\r\n\r\n";
        check(chunked, Ok((503, "abc0123456789")));
    }

    #[test]
    fn truncated_answers_are_errors() {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        check(b"", Err(UnexpectedEof));
        check(b"SSH-2.0\r\n\r\n", Err(InvalidData));
        check(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell", Err(UnexpectedEof));
        check(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", Err(UnexpectedEof));
        check(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
            Err(InvalidData),
        );
    }

    #[test]
    fn a_post_sends_headers_and_body_and_reads_json() {
        let (addr, server) =
            serve(b"HTTP/1.1 201 Created\r\nX-Y: z\r\ncontent-length: 7\r\n\r\n{\"a\":1}", 4);
        let answer =
            post(addr, "/messages?a=b", &[("Content-Type", "text/plain")], b"body").expect("answered");
        assert_eq!((answer.status(), answer.header("x-y"), &answer.json()["a"]), (201, Some("z"), &1.into()));
        let seen = server.join().expect("served");
        assert!(seen.starts_with("POST /messages?a=b HTTP/1.1\r\nhost: 127.0.0.1:"), "{seen}");
        assert!(seen.ends_with("Content-Type: text/plain\r\ncontent-length: 4\r\n\r\nbody"), "{seen}");
    }

    #[test]
    fn one_connection_carries_several_answers_and_raw_bytes() {
        let two =
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1HTTP/1.1 404 No\r\ncontent-length: 1\r\n\r\n2";
        let (addr, server) = serve(two, 0);
        let mut connection = Connection::open(addr).expect("connected");
        connection.send(b"\xff\xfe\r\n").expect("sent");
        connection.send(b"\r\n").expect("sent");
        assert_eq!(connection.receive("GET").expect("first").text(), "1");
        assert_eq!(connection.receive("GET").expect("second").status(), 404);
        server.join().expect_err("the bytes were not UTF-8");
    }

    #[test]
    fn a_refused_connection_is_an_error() {
        let addr = crate::support::address::free_addr();
        assert_eq!(get(addr, "/").expect_err("refused").kind(), io::ErrorKind::ConnectionRefused);
    }
}
