// What virtual users of Artillery do at a relay; artillery.yml uses it. Artillery's own steps send a
// message and await one answer. Frames come unasked, so they are received here.
"use strict"

const PHONES = 2
const FPS = 10
const FRAME_BYTES = 16 * 1024
const SECONDS = 10

const frame = Buffer.alloc(FRAME_BYTES, "x").toString("base64")
let users = 0

function choosePart(context, events, done) {
  context.vars.number = users++
  done()
}

function play(context, events, done) {
  const { ws } = context
  const { number } = context.vars
  const isPhone = number < PHONES
  const say = (message) => ws.send(JSON.stringify(message))
  let sending

  ws.onmessage = undefined // what the step before awaited has come
  ws.on("message", (data) => {
    const message = JSON.parse(data)
    if (message.type === "success" && isPhone) {
      sending = setInterval(() => {
        say({ type: "video-frame", data: frame, timestamp: Date.now() })
        events.emit("counter", "relay.frames_sent", 1)
      }, 1000 / FPS)
    } else if (message.type === "video-frame") {
      events.emit("counter", "relay.frames_received", 1)
      events.emit("histogram", "relay.frame_age", Date.now() - message.timestamp)
    } else if (message.type === "error") {
      events.emit("error", message.code)
    }
  })
  ws.on("close", () => clearInterval(sending))
  const streamId = `artillery-${number % PHONES}`
  if (isPhone) say({ type: "register", streamId })
  else say({ type: "subscribe", streamId, consumes: ["video-frame"] })
  setTimeout(() => {
    clearInterval(sending)
    done()
  }, SECONDS * 1000)
}

module.exports = { choosePart, play }
